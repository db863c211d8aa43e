"""A local web page over the store that only reads: `raymsa ui`. Needs the extra `ui`; nothing else imports it."""

"""One file per dataset layout; each turns a raw folder into `RawClip` rows."""

"""What a person reads of the store: tables. The only place where numbers are rounded."""

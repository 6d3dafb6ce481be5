"""The eighth held-out part: small programs as they are brought to a help forum."""

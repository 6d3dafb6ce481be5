"""Cases written later than all others, without sight of them."""

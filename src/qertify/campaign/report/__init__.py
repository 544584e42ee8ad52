"""A campaign as one self-contained web page: no request leaves it."""

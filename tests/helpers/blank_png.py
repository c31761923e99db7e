"""A picture in place of those that matplotlib draws, which takes most of a tiny run."""

BLANK = b"\x89PNG\r\n\x1a\n"  # what a report asks of a picture: that it begins as a PNG

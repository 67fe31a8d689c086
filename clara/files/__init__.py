"""Files and folders, written so that nobody sees half of one, and their digests."""

"""Files and folders: their names, and writing them."""

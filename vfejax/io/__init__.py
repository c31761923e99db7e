"""Files, progress and pictures: everything that touches the disk or the terminal."""

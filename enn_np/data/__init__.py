"""What comes in: images, text, generated tasks, and how files are found, checked and fetched."""

"""The length of the sound in a file, from its bytes if the header is wrong or has no length."""

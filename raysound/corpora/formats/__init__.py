"""What a sound file holds: found from its bytes where its header is wrong or states no length."""

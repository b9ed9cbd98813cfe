"""The values that users see and make, and their conversion to and from messages."""

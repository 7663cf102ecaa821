"""The synthetic sample that ships with evbind, and the script that wrote it."""

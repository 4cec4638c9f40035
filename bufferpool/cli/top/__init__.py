"""The live view of the command ``bufferpool top``."""

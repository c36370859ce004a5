"""The cloud service: holds the large generator."""

"""The user service: equalises, decodes and shows the image."""

"""The user service: equalises, decodes and shows the picture."""

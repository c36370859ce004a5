"""Loading and sampling of the generators, cloud and edge alike, and pictures as bytes."""

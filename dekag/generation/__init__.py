"""Loading and sampling of the generators, cloud and edge alike, and images as bytes."""

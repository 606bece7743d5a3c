"""Room of pages: what a store, a training and two students look like, in one HTML file each."""

"""Reading data sets of defects on surfaces: faultless images to learn from, and images with defects, most with masks of these."""

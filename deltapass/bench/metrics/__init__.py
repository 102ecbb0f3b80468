"""What images are judged by: one value an image, means with intervals, verdicts on pairs."""

"""What was shown: a log that never blocks an answer, and the labels that it gets once it is mature."""

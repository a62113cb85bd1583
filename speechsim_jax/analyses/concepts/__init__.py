"""What layers and neurons of models know of labels and acoustics, and whether it is the same."""

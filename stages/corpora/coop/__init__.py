"""Reading the eleven data sets of CoOp and PromptKD, and four variants of ImageNet, from the folders that CoOp lays out."""

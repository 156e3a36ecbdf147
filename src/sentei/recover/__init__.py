"""Recovery: which data heal a pruned model (`select`), and training the few parameters that matter (`tune`)."""

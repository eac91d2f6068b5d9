"""Accuracy of classifiers at every keep_ratio. See `python eval/imagenet_top1.py --help`."""

from sam_bigltl.evaluation.imagenet import main

if __name__ == "__main__":
    main()

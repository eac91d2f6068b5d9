"""What classifiers keep of their accuracy. See `python eval/classify_study.py --help`."""

from sam_bigltl.training.classify_study import main

if __name__ == "__main__":
    main()

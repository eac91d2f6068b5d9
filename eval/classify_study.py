"""What classifiers keep of their accuracy. See `python eval/classify_study.py --help`."""

from research.classify_study import main

if __name__ == "__main__":
    main()

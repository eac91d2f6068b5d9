"""Labelled object crops from COCO-format annotations. See `python eval/object_crops.py --help`."""

from sam_bigltl.data.crops import main

if __name__ == "__main__":
    main()

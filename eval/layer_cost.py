"""What each term of a layer costs. See `python eval/layer_cost.py --help` and `sam_bigltl/layer_cost.py`."""

from sam_bigltl.bench.layer_cost import main

if __name__ == "__main__":
    main()

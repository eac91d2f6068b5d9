"""The plain ViT that docs/study.md studies. See --help."""

from research.plain_teacher import main

if __name__ == "__main__":
    main()

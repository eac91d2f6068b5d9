"""Research: the studies behind the pages of docs/, run by scripts of the folder above."""

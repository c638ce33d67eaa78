"""How imagemill looks: its style, how it writes numbers, small pictures. Of pages and sites."""

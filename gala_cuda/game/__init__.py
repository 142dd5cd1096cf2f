"""The ClickMe game (Linsley et al., ICLR 2019): people paint where a network has to look, and human maps come of it."""

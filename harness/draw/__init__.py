"""Where pictures are drawn: SVG by hand, without a dependency, legible in light and in dark.

``drawing`` is the paper, ``chart`` what stands on axes, ``scales`` their values, ``colours`` the
one palette, ``markup`` the escaping. What a picture tells is known in other rooms, lab, profile
and report; this one knows none of them.
"""

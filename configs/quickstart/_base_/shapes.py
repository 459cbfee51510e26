"""What the quickstarts learn from, easier than the defaults so that minutes on a CPU suffice.

Many objects of nearly one size on small pictures teach most in a minute: shapes are learnt in a few
hundred iterations. Sizes from 16 to 56 px take a segmentor several times as long.
"""

shapes = dict(
    data_root="data/shapes",
    image_size=128,
    num_images=dict(train=1500, val=200),
    object_size=(24, 30),
    objects_per_image=(8, 12),
    min_visible=0.9,
    texture_contrast=0.25,
)

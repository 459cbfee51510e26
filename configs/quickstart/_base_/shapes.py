"""What the quickstarts learn from, easier than the defaults so that minutes on a CPU suffice.

Small pictures with several objects teach most in a minute; weak textures and little occlusion make the
shapes learnable in a few hundred iterations.
"""

shapes = dict(
    data_root="data/shapes",
    image_size=128,
    num_images=dict(train=1500, val=200),
    object_size=(16, 56),
    objects_per_image=(3, 6),
    min_visible=0.8,
    texture_contrast=0.25,
)

"""Names of what is measured on test images. Standard library only: the benchmark's planning imports it."""

MEASURES = {
    "image_AUROC": "image AUROC",
    "pixel_AUROC": "pixel AUROC",
    "pixel_AUPRO": "AUPRO",
    "image_AP": "image AP",
    "pixel_AP": "pixel AP",
    "image_F1": "image F1",
    "pixel_F1": "pixel F1",
}
"""Name and label of each measure, all in [0, 1], higher is better. AP is average precision. AUPRO reaches to a false
positive rate of 0.3. F1 is the highest over all thresholds, chosen on the test images."""
MAIN = ["image_AUROC", "pixel_AUROC", "pixel_AUPRO"]
"""The measures that models are ranked by."""

from anomalib import LearningType
from anomalib.models.components import AnomalibModule
class VaeAttention(AnomalibModule):
    def __init__(self, latent_dim: int = 64): super().__init__()
    learning_type = LearningType.ONE_CLASS
    trainer_arguments = {}

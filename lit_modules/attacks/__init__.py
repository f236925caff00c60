"""Adversarial attacks in plain torch: ``attack = LinfPGD(eps=8 / 255)``, then ``attack(model, images, labels)``."""

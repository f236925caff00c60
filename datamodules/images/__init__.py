"""Image classification data."""

from .cifar10 import CIFAR10 as CIFAR10
from .digits import Digits as Digits
from .fashion_mnist import FashionMNIST as FashionMNIST
from .image_folder import ImageFolder as ImageFolder
from .mnist import MNIST as MNIST

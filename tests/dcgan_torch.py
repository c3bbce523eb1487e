"""Three updates of PyTorch's DCGAN example at 16 pixels, in a process of its own (PyTorch and TensorFlow both bring LLVM): `python dcgan_torch.py IN.npz OUT.npz`.

IN: generator-0 .., discriminator-0 .. (weights as Keras has them), width, real (3, n, 16, 16, 3), noise (3, n, 100). OUT: the logs, (3,) each,
and the running averages of the normalizations, generator-mean-0, generator-var-0 ...
"""
import sys

import numpy as np
import torch
from torch import nn

given = np.load(sys.argv[1])
w = int(given['width'])
networks = {
    'generator': nn.Sequential(nn.ConvTranspose2d(100, 2 * w, 4, 1, 0, bias=False), nn.BatchNorm2d(2 * w), nn.ReLU(True),
                               nn.ConvTranspose2d(2 * w, w, 4, 2, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU(True),
                               nn.ConvTranspose2d(w, 3, 4, 2, 1, bias=False), nn.Tanh()),
    'discriminator': nn.Sequential(nn.Conv2d(3, w, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True),
                                   nn.Conv2d(w, 2 * w, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * w), nn.LeakyReLU(0.2, True),
                                   nn.Conv2d(2 * w, 1, 4, 1, 0, bias=False), nn.Sigmoid())}
for name, network in networks.items():
    parameters = list(network.parameters())
    assert f'{name}-{len(parameters)}' not in given
    for i, parameter in enumerate(parameters):
        value = given[f'{name}-{i}']
        parameter.data = torch.from_numpy(value.transpose(3, 2, 0, 1).copy() if value.ndim == 4 else value)


def update(generator, discriminator, optimizers, real, noise):
    "One turn of the example's loop: Loss_D, Loss_G, D(x), D(G(z)) before and after."
    criterion = nn.BCELoss()
    ones, zeros = torch.ones(len(real)), torch.zeros(len(real))
    discriminator.zero_grad()
    output = discriminator(real).view(-1)
    loss_real, d_x = criterion(output, ones), output.mean().item()
    loss_real.backward()
    fake = generator(noise)
    output = discriminator(fake.detach()).view(-1)
    loss_fake, before = criterion(output, zeros), output.mean().item()
    loss_fake.backward()
    optimizers['discriminator'].step()
    generator.zero_grad()
    output = discriminator(fake).view(-1)
    loss_g = criterion(output, ones)
    loss_g.backward()
    optimizers['generator'].step()
    return {'d_loss': (loss_real + loss_fake).item(), 'g_loss': loss_g.item(), 'd_real': d_x, 'd_fake_before': before, 'd_fake_after': output.mean().item()}


optimizers = {name: torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.55, 0.999)) for name, network in networks.items()}
logs = [update(**networks, optimizers=optimizers, real=torch.from_numpy(real.transpose(0, 3, 1, 2).copy()), noise=torch.from_numpy(noise[:, :, None, None]))
        for real, noise in zip(given['real'], given['noise'])]
found = {key: [log[key] for log in logs] for key in logs[0]}
for name, network in networks.items():
    for i, layer in enumerate(x for x in network if isinstance(x, nn.BatchNorm2d)):
        found |= {f'{name}-mean-{i}': layer.running_mean.numpy(), f'{name}-var-{i}': layer.running_var.numpy()}
np.savez(sys.argv[2], **found)

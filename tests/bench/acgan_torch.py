"""The two networks of srm and singh and one update of theirs in PyTorch, channels_last, for timing.

Layers, parameter counts, losses, L2 penalties and optimisers are those of cxr_acgan.acgan. Two details differ without
any effect on the arithmetic's amount: at stride 2 the odd row and column of 'same' padding lie on the other side, and
RMSprop's weight decay (6e-9) goes through the gradient.
"""
import torch
from torch import nn
from torch.nn import functional as F


class ChannelNorm(nn.Module):
    "Normalisation over the channels of each pixel, as Keras' LayerNormalization; no copy in channels_last."
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-3)

    def forward(self, x): return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Generator(nn.Module):
    def __init__(self, latent_dim=100, num_classes=2, image_size=64):
        super().__init__()
        self.side = image_size // 8
        self.first, self.second = nn.Linear(latent_dim + num_classes, 1024), nn.Linear(1024, self.side**2 * 256)
        blocks, before = [], 256
        for width in (256, 128, 64, 32):
            stride = 2 if width >= 64 else 1
            blocks += [ChannelNorm(before), nn.ReLU(), nn.ConvTranspose2d(before, width, 5, stride, 2, output_padding=stride - 1)]
            before = width
        self.blocks = nn.Sequential(*blocks, nn.ConvTranspose2d(before, 3, 5, 1, 2))

    def forward(self, noise, labels):
        x = self.second(self.first(torch.cat([noise, labels], 1)))
        x = x.view(-1, self.side, self.side, 256).permute(0, 3, 1, 2)           # channels_last as it lies
        return torch.sigmoid(self.blocks(x).float())

    def penalty(self): return 1e-3 * self.second.weight.square().sum()


class Discriminator(nn.Module):
    def __init__(self, num_classes=2, image_size=64):
        super().__init__()
        self.convolutions, before = nn.ModuleList(), 3
        for width in (32, 64, 128, 256):
            self.convolutions.append(nn.Conv2d(before, width, 5, 2 if width < 256 else 1, 2))
            before = width
        flat = (image_size // 8)**2 * 256
        self.source, self.dense, self.classes = nn.Linear(flat, 1), nn.Linear(flat, 256), nn.Linear(256, num_classes)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        for convolution in self.convolutions: x = F.leaky_relu(convolution(x), 0.2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        return self.source(x).float(), self.classes(self.dropout(self.dense(x))).float()

    def penalty(self): return 1e-3 * sum(w.weight.square().sum() for w in (*self.convolutions, self.dense))


class TorchAcgan:
    "Both networks, their optimisers and data (uint8 (n, height, width, 1), labels int (n,)); `update()` makes one update."
    def __init__(self, images, labels, batch_size=16, autocast=False, latent_dim=100):
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.labels = F.one_hot(torch.from_numpy(labels).long(), 2).float()
        self.batch_size, self.autocast, self.latent_dim = batch_size, autocast, latent_dim
        size = images.shape[1]
        self.G = Generator(latent_dim, image_size=size).to(memory_format=torch.channels_last)
        self.D = Discriminator(image_size=size).to(memory_format=torch.channels_last)
        rmsprop = lambda network, share: torch.optim.RMSprop(
            network.parameters(), lr=1e-4 * share, alpha=0.9, eps=1e-7, weight_decay=6e-9 * share)
        self.d_optimizer, self.g_optimizer = rmsprop(self.D, 1.), rmsprop(self.G, 0.5)

    def parameters(self): return [sum(p.numel() for p in network.parameters()) for network in (self.G, self.D)]

    def noise(self): return torch.rand(self.batch_size, self.latent_dim) * 2 - 1

    def losses(self, images, tags, labels):
        source, logits = self.D(images)
        return F.mse_loss(source, tags), F.binary_cross_entropy_with_logits(logits, labels)

    def update(self):
        "Returns D's tag and label losses and G's."
        n = self.batch_size
        with torch.autocast('cpu', torch.bfloat16, enabled=self.autocast):
            index = torch.randint(len(self.images), (n,))
            real = (self.images[index].float() / 255).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
            labels = F.one_hot(torch.randint(2, (n,)), 2).float()
            with torch.no_grad(): fake = self.G(self.noise(), labels)
            tags = torch.cat([torch.ones(n, 1), torch.zeros(n, 1)])
            d_tag, d_labels = self.losses(torch.cat([real, fake]), tags, torch.cat([self.labels[index], labels]))
            d_loss = d_tag + d_labels + self.D.penalty()
        self.step(self.d_optimizer, d_loss)
        self.D.requires_grad_(False)
        with torch.autocast('cpu', torch.bfloat16, enabled=self.autocast):
            g_tag, g_labels = self.losses(self.G(self.noise(), labels), torch.ones(n, 1), labels)
            g_loss = g_tag + g_labels + self.G.penalty()
        self.step(self.g_optimizer, g_loss)
        self.D.requires_grad_(True)
        return d_tag.item(), d_labels.item(), g_tag.item(), g_labels.item()

    def step(self, optimizer, loss):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def make_update(images, labels, batch_size=16, autocast=False):
    "`(update, acgan)`: `update()` makes one update on uint8 images (n, height, width, 1)."
    torch.set_flush_denormal(True)                                      # TensorFlow's threads do so by default
    acgan = TorchAcgan(images, labels, batch_size, autocast)
    return acgan.update, acgan

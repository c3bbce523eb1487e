"""The documents' own training loop, for timing: class Acgan of srm (build, trainAlgorithm), also singh's by its settings.

Written from the report's listing. What had to change for Keras 3, and nothing else:
- `trainable` is read when a model trains, not fixed when it is compiled: D is switched on for its own update and
  off for GAN's. Each train function is traced in the first update only, in the state it then always runs in;
- `jit_compile=False`, which is what Keras 2 did; Keras 3 would compile with XLA by itself (slower here on CPUs);
- the two outputs of GAN get names, without which Keras 3 reports one loss twice (what is minimised is the same);
- input shapes are tuples, `alpha` is `negative_slope`, and kernel_size is 5, as the printed tables need.
"""
import numpy as np
import tensorflow as tf
from keras import Input, layers, models, optimizers, regularizers, utils


class Acgan:
    def __init__(self, eta=1e-4, batch_size=16, weight_decay=6e-9, latent_space=100, image_shape=(64, 64, 3),
                 kernel_size=5, jit_compile=False):
        self.eta, self.batch_size, self.weight_decay = eta, batch_size, weight_decay
        self.latent_space, self.image_shape, self.kernel_size = latent_space, image_shape, kernel_size
        self.jit_compile = jit_compile
        self.traces = {}                                        # network -> how often its train step was traced

    def data(self, images, labels):
        "images float64 (n, height, width, 3) in [0, 1], as the report's loader makes them; labels int (n,)."
        self.images, self.labels = images, utils.to_categorical(labels)

    def generator(self, inputs, labels):
        x = layers.concatenate([inputs, labels])
        x = layers.Dense(1024)(x)
        x = layers.Dense(8 * 8 * 256, kernel_regularizer=regularizers.L2(0.001))(x)
        x = layers.Reshape((8, 8, 256))(x)
        for filters in (256, 128, 64, 32):
            x = layers.LayerNormalization()(x)
            x = layers.Activation('relu')(x)
            x = layers.Conv2DTranspose(filters, kernel_size=self.kernel_size, padding='same',
                                       strides=2 if filters >= 64 else 1)(x)
        x = layers.Conv2DTranspose(3, kernel_size=self.kernel_size, padding='same')(x)
        x = layers.Activation('sigmoid')(x)
        self.generatorModel = models.Model(inputs=[inputs, labels], outputs=x, name='generator')

    def discriminator(self, inputs):
        x = inputs
        for filters in (32, 64, 128, 256):
            x = layers.Conv2D(filters, kernel_size=self.kernel_size, padding='same', strides=2 if filters < 256 else 1,
                              kernel_regularizer=regularizers.L2(0.001))(x)
            x = layers.LeakyReLU(negative_slope=0.2)(x)
        x = layers.Flatten()(x)
        outputs = layers.Dense(1)(x)
        labels_output = layers.Dense(256, kernel_regularizer=regularizers.L2(0.001))(x)
        labels_output = layers.Dropout(0.3)(labels_output)
        labels_output = layers.Dense(2)(labels_output)
        labels_output = layers.Activation('softmax')(labels_output)
        self.discriminatorModel = models.Model(inputs=inputs, outputs=[outputs, labels_output], name='discriminator')

    def build(self):
        generator_input, labels_input = Input((self.latent_space,)), Input((2,))
        self.generator(generator_input, labels_input)
        self.discriminator(Input(self.image_shape))
        G, D = self.generatorModel, self.discriminatorModel
        compile_as = lambda model, share: model.compile(
            loss=['mse', 'binary_crossentropy'], jit_compile=self.jit_compile,
            optimizer=optimizers.RMSprop(learning_rate=self.eta * share, weight_decay=self.weight_decay * share))
        compile_as(D, 1.)
        D.trainable = False
        GAN = models.Model(inputs=[generator_input, labels_input], outputs=D(G([generator_input, labels_input])), name='gan')
        GAN.output_names = ['tag', 'labels']                    # Keras 3 calls both 'discriminator' and logs one loss twice
        compile_as(GAN, 0.5)
        for model in (D, GAN): self._count_traces(model)
        return G, D, GAN

    def _count_traces(self, model):
        "Python runs a train step only while it is traced (twice in the first call, which makes the optimiser's variables)."
        step, self.traces[model.name] = model.train_step, 0
        def train_step(data):
            self.traces[model.name] += 1
            return step(data)
        model.train_step = train_step

    def update(self, G, D, GAN):
        "One pass of trainAlgorithm's loop; returns D's tag and label losses and G's."
        indexs = np.random.randint(0, len(self.images), size=(self.batch_size,))
        real_images, real_labels = self.images[indexs], self.labels[indexs]
        real_tag = tf.ones(shape=(self.batch_size,))
        noize = tf.random.uniform(shape=(self.batch_size, self.latent_space), minval=-1, maxval=1)
        fake_labels = utils.to_categorical(np.random.choice(range(2), size=(self.batch_size,)), num_classes=2)
        fake_images = tf.squeeze(G.predict([noize, fake_labels], verbose=0))
        fake_tag = tf.zeros(shape=(self.batch_size,))
        all_images = np.vstack([real_images, fake_images])
        all_labels = np.vstack([real_labels, fake_labels])
        all_tags = np.hstack([real_tag, fake_tag])
        D.trainable = True                                      # Keras 3
        _, d_loss_tag, d_loss_labels = D.train_on_batch(all_images, [all_tags, all_labels])
        noize = tf.random.uniform(shape=(self.batch_size, self.latent_space), minval=-1, maxval=1)
        D.trainable = False                                     # Keras 3
        _, g_loss_tag, g_loss_labels = GAN.train_on_batch([noize, fake_labels], [real_tag, fake_labels])
        return d_loss_tag, d_loss_labels, g_loss_tag, g_loss_labels


def make_update(images, labels, batch_size=16, jit_compile=False):
    "The loop on uint8 images (n, height, width, 1): `(update, acgan, networks)`, `update()` makes one update."
    acgan = Acgan(batch_size=batch_size, image_shape=(*images.shape[1:3], 3), jit_compile=jit_compile)
    acgan.data(np.repeat(images, 3, axis=-1) / 255, labels)
    networks = acgan.build()
    return lambda: acgan.update(*networks), acgan, networks

"""Text: taggers, tokenisers, encoders."""

from __future__ import annotations

import torch

from benchmarks.packages.check import Example


def allennlp() -> Example:
    """A bidirectional encoder of two layers, with a mask."""
    from allennlp_light.modules.seq2seq_encoders import LstmSeq2SeqEncoder

    model = LstmSeq2SeqEncoder(100, 200, num_layers=2, bidirectional=True)
    embedded = torch.randn(32, 60, 100)
    lengths = torch.randint(1, 61, (32, 1))
    mask = torch.arange(60) < lengths
    return Example(model, lambda model: model(embedded, mask))


def stanza() -> Example:
    """The tokeniser with the defaults of its training, on a batch sorted by length."""
    from stanza.models.tokenization.model import Tokenizer

    args = {
        "feat_dim": 5,
        "rnn_layers": 1,
        "conv_res": None,
        "use_mwt": False,
        "hierarchical": True,
        "hier_invtemp": 0.5,
        "tok_noise": 0.02,
    }
    model = Tokenizer(args, 500, emb_dim=32, hidden_dim=64, dropout=0.33, feat_dropout=0.05)
    lengths = torch.randint(1, 301, (32,)).sort(descending=True).values
    characters, features = torch.randint(1, 500, (32, 300)), torch.rand(32, 300, 5)
    return Example(model, lambda model: model(characters, features, lengths.tolist()))


def flair() -> Example:
    """The loss of a tagger of names, with embeddings of words and of their characters."""
    from flair.data import Dictionary, Sentence
    from flair.embeddings import CharacterEmbeddings, OneHotEmbeddings, StackedEmbeddings
    from flair.models import SequenceTagger

    sentences = [
        Sentence("George Washington went to Washington ."),
        Sentence("The astronomer Henrietta Leavitt measured how bright stars are in Cambridge ."),
        Sentence("Edwin Hubble used her law to find how far away the Andromeda Nebula is ."),
        Sentence("Thank you , Miss Leavitt !"),
    ]
    for sentence, start in zip(sentences, (0, 2, 0, 3), strict=True):
        sentence[start : start + 2].add_label("ner", "PER")
    words, characters, tags = Dictionary(), Dictionary(), Dictionary(add_unk=False)
    for token in (token for sentence in sentences for token in sentence):
        words.add_item(token.text)
        for character in token.text:
            characters.add_item(character)
    tags.add_item("PER")
    tags.span_labels = True
    embeddings = StackedEmbeddings([OneHotEmbeddings(words), CharacterEmbeddings(characters)])
    model = SequenceTagger(embeddings, tags, tag_type="ner", hidden_size=256)

    def run(model: SequenceTagger) -> torch.Tensor:
        for sentence in sentences:
            sentence.clear_embeddings()  # they would keep the graph of the call before
        return model.forward_loss(sentences)[0]

    return Example(model, run)

"""Train any model on stored targets with a loop of your own. The teacher is not needed, and not loaded.

python examples/own_training_loop.py demo-run/shards demo-run/targets --model resnet18 --size 64 --epochs 8
"""

import argparse

import safetensors.torch
import timm
import torch
from teachonce import TargetStream
from torch.nn import functional as F


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="folder of `teachonce shard`")
    parser.add_argument("store", help="target store of `teachonce cache`, made from these shards")
    parser.add_argument("--model", default="resnet18", help="any image classifier of timm's")
    parser.add_argument("--size", type=int, default=224, help="pixels of its input; the teacher's may differ")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", default="model.safetensors")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with TargetStream(args.shards, args.store, image_size=args.size, batch_size=args.batch_size, seed=0) as stream:
        model = timm.create_model(args.model, num_classes=stream.class_vectors.num_classes).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for epoch in range(args.epochs):
            total = 0.0
            # uint8 images, fp32 targets by name, row numbers; each epoch reads the next view
            for images_NCHW, targets, _ in stream:
                student_NC = model(images_NCHW.to(device).float() / 127.5 - 1).log_softmax(1)
                teacher_NC = targets["logits"].to(device).log_softmax(1)
                loss = F.kl_div(student_NC, teacher_NC, log_target=True, reduction="batchmean")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
            print(f"epoch {epoch}: KL {total / len(stream):.4f}")
    safetensors.torch.save_file({n: t.contiguous() for n, t in model.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()

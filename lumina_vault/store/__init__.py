"""The engine: streams are cut into chunks, chunks go into packs, trees and records say what they make up."""

import ArgumentParser
import Foundation
import Trace
import VMCore

struct PackCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pack", abstract: "Writes a trace again in as few bytes as it gets.",
        discussion: "A packed trace reads like any other, only more slowly where pages come from its checkpoints.")

    @OptionGroup var trace: TraceArgument

    @Option(name: [.short, .long], help: ArgumentHelp("The packed trace.", valueName: "file"))
    var output: String

    @Option(help: ArgumentHelp("Checkpoints to keep: all, none but the first, or so many.", valueName: "all|none|n"))
    var checkpoints = "all"

    @Flag(help: "Replace an existing file.")
    var force = false

    @Flag(help: "Print a report in JSON on standard output.")
    var json = false

    func run() throws {
        try reporting {
            let path = try trace.path()
            try SnapshotCommand.refuse(writing: output, over: path)
            var packer = try TracePacker(TraceReader(path: path))
            switch checkpoints {
            case "all": break
            case "none": packer.checkpoints = .atMost(1)
            default:
                guard let count = Int(checkpoints), count > 0 else {
                    throw UsageError("--checkpoints takes all, none or a number, not '\(checkpoints)'")
                }
                packer.checkpoints = .atMost(count)
            }
            var progress = ProgressBar("packing")
            let start = hostTime()
            try packer.write(to: output, overwrite: force) { progress.update($0) }
            progress.finish()
            let (before, after) = (fileBytes(path), fileBytes(output))
            let seconds = (hostTime() - start).seconds
            if json {
                let kept = try TraceReader(path: output).checkpoints.count
                let report: JSON = [
                    "trace": .string(output), "bytes_before": JSON(before), "bytes_after": JSON(after),
                    "checkpoints": JSON(kept), "seconds": .number(seconds),
                ]
                write(report.text() + "\n")
            } else {
                write("\(output): \(humanBytes(after)), \(after * 100 / max(1, before)) % of \(humanBytes(before))\n")
            }
            return .done
        }
    }
}

/// The size of a file; 0 where there is none.
func fileBytes(_ path: String) -> UInt64 {
    (try? FileManager.default.attributesOfItem(atPath: path)[.size] as? UInt64) ?? 0
}

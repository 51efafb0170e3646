import ArgumentParser
import Foundation
import Trace

/// The trace that a command works on.
struct TraceArgument: ParsableArguments {
    @Argument(help: ArgumentHelp("The trace; without it, the newest one in this folder.", valueName: "trace"))
    var trace: String?

    /// The path, given or found.
    func path() throws -> String {
        if let trace { return trace }
        let folder = URL(fileURLWithPath: ".")
        let files = (try? FileManager.default.contentsOfDirectory(
            at: folder, includingPropertiesForKeys: [.contentModificationDateKey])) ?? []
        let newest = files.filter { $0.pathExtension == "vmrr" }.max { date(of: $0) < date(of: $1) }
        guard let newest else {
            throw UsageError("there is no trace in this folder; name one, or record one with vmrr record")
        }
        return newest.lastPathComponent
    }

    private func date(of file: URL) -> Date {
        (try? file.resourceValues(forKeys: [.contentModificationDateKey]).contentModificationDate) ?? .distantPast
    }
}

import CKVM
import Foundation

/// What a command writes for other programs: a file, or standard output.
final class OutputFile {
    private let descriptor: Int32
    private let name: String
    private var buffer: [UInt8] = []

    struct Failure: Error, CustomStringConvertible {
        var description: String
    }

    /// Nil is standard output. `trace`, which is being read, is never written over.
    init(_ path: String?, force: Bool, not trace: String) throws {
        guard let path else {
            (descriptor, name) = (1, "standard output")
            return
        }
        if !force, FileManager.default.fileExists(atPath: path) { throw UsageError("\(path) exists; --force replaces it") }
        try SnapshotCommand.refuse(writing: path, over: trace)
        (descriptor, name) = (ckvm_create(path), path)
        guard descriptor >= 0 else { throw UsageError("can't write \(path): \(String(cString: strerror(ckvm_errno())))") }
    }

    deinit { if descriptor > 2 { close(descriptor) } }

    func write(_ bytes: [UInt8]) throws {
        buffer += bytes
        if buffer.count >= 1 << 16 { try finish() }
    }

    /// Writes what is still to be written.
    func finish() throws {
        var rest = buffer[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { Foundation.write(descriptor, $0.baseAddress, $0.count) }
            if count < 0, ckvm_errno() == EINTR { continue }
            guard count >= 0 else {
                throw Failure(description: "can't write \(name): \(String(cString: strerror(ckvm_errno())))")
            }
            rest = rest.dropFirst(count)
        }
        buffer.removeAll(keepingCapacity: true)
    }
}

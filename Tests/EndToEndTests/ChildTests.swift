import Foundation
import Testing

extension EndToEnd {
    /// What is measured of a child is the child's, whatever the test process has.
    @Suite struct ChildTests {
        /// As much as big suites leave in the test process, and more than a child may take.
        private static let ballast = MutatedTraces.memoryLimit + 128 << 20

        /// Runs `command` while this process has more memory than any child may take.
        private func run(_ command: [String]) throws -> Output {
            let memory = UnsafeMutableRawPointer.allocate(byteCount: Self.ballast, alignment: 4096)
            defer { memory.deallocate() }
            memset(memory, 1, Self.ballast)
            return try Child.run(command, in: "/", deadline: 60)
        }

        @Test func aSmallChildIsSmallBesideALargeParent() throws {
            let output = try run(["sleep", "0.2"])
            #expect(output.status == 0)
            #expect(output.peakMemory > 0 && output.peakMemory < 32 << 20, "\(output.peakMemory >> 10) KiB")
        }

        /// dd fills a buffer of its block size. Less than the parent has, and more than it has ever had.
        @Test(arguments: [MutatedTraces.memoryLimit + 32 << 20, ballast + 1024 << 20])
        func anExcessIsSeen(_ bytes: Int) throws {
            let output = try run(["dd", "if=/dev/zero", "of=/dev/null", "bs=\(bytes)", "count=4"])
            #expect(output.status == 0)
            #expect(output.peakMemory >= bytes && output.peakMemory < bytes + 32 << 20, "\(output.peakMemory >> 10) KiB")
        }
    }
}

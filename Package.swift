// swift-tools-version: 6.1
import PackageDescription

let swiftSettings: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
]

// The engines and what answers them own their state alone, on one thread: the checks at run time that they do took 1.1 % of
// the time of an exit. Debug builds keep them.
let engineSettings = swiftSettings + [
    .unsafeFlags(["-enforce-exclusivity=unchecked"], .when(configuration: .release))
]

let package = Package(
    name: "vmrr",
    products: [
        .executable(name: "vmrr", targets: ["vmrr"])
    ],
    dependencies: [
        .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
    ],
    targets: [
        .target(name: "CKVM"),
        .target(name: "CHostFloat"),
        .target(name: "CScalarXXH3"),
        .systemLibrary(name: "CZstd"),
        .systemLibrary(name: "CLZ4"),
        .systemLibrary(name: "CXXHash"),
        .systemLibrary(name: "CZydis"),
        .target(name: "CTraceSQLite"),
        .target(name: "Guests"),
        .target(
            name: "VMCore",
            dependencies: ["CHostFloat", "CKVM", "CLZ4", "CScalarXXH3", "CXXHash", "CZstd", "CZydis", "Guests"],
            swiftSettings: engineSettings
        ),
        .target(
            name: "Trace",
            dependencies: [
                "VMCore", "CZstd", "CLZ4", "CXXHash", "CTraceSQLite",
                .product(name: "GRDB", package: "GRDB.swift"),
            ],
            // The tests of the format build damaged files from its inner parts, also in release builds.
            swiftSettings: swiftSettings + [.unsafeFlags(["-enable-testing"])]
        ),
        .target(name: "Recorder", dependencies: ["Trace", "VMCore"], swiftSettings: engineSettings),
        .target(name: "Replay", dependencies: ["Trace", "VMCore", "CZydis"], swiftSettings: engineSettings),
        .executableTarget(
            name: "vmrr",
            dependencies: [
                "Recorder", "Replay", "Trace", "VMCore", "Guests", "CKVM",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: swiftSettings
        ),
        // Records forever: what the tests of killed recordings kill.
        .executableTarget(
            name: "TraceHelper", dependencies: ["Trace", "VMCore"], path: "Tests/TraceHelper", swiftSettings: swiftSettings
        ),
        // Sizes and speeds of the trace format.
        .executableTarget(
            name: "TraceBench", dependencies: ["Trace", "VMCore"], path: "Benchmarks/TraceBench",
            swiftSettings: swiftSettings
        ),
        // How fast a timeline moves.
        .target(name: "SoftGuests", path: "Benchmarks/SoftGuests"),
        .executableTarget(
            name: "SoftBench", dependencies: ["VMCore", "SoftGuests"], path: "Benchmarks/SoftBench",
            swiftSettings: swiftSettings
        ),
        .executableTarget(
            name: "TimelineBench", dependencies: ["Replay", "Trace", "VMCore"], path: "Benchmarks/TimelineBench",
            swiftSettings: swiftSettings
        ),
        // The guest that runs the soft engine's tests on the processor itself.
        .target(name: "DifferentialGuest", path: "Tests/DifferentialGuest"),
        .testTarget(
            name: "VMCoreTests", dependencies: ["VMCore", "Guests", "CZydis", "DifferentialGuest"], swiftSettings: swiftSettings
        ),
        // Tests of the built binary; VMRR_BINARY names another one.
        .testTarget(
            name: "EndToEndTests",
            dependencies: ["Trace", "VMCore", .product(name: "GRDB", package: "GRDB.swift")],
            swiftSettings: swiftSettings
        ),
        .testTarget(name: "RecorderTests", dependencies: ["Recorder", "VMCore"], swiftSettings: swiftSettings),
        // A guest with a fault that the tests plant and find.
        .target(name: "PlantedGuest", path: "Tests/PlantedGuest"),
        .testTarget(
            name: "ReplayTests", dependencies: ["Recorder", "Replay", "Trace", "VMCore", "PlantedGuest"],
            swiftSettings: swiftSettings
        ),
        .testTarget(
            name: "TraceTests",
            dependencies: [
                "Trace", "VMCore", "TraceHelper", "CZstd", "CLZ4", "CXXHash",
                .product(name: "GRDB", package: "GRDB.swift"),
            ],
            swiftSettings: swiftSettings
        ),
    ]
)
